"""The local web page, one module per tab; nothing else uses its extra `app` (Gradio, Plotly). May import report,
evaluation, inference, tasks, pretrained, methods, models, data and core.
"""
