"""The local web page: `page` puts the tabs together and serves them, one module per tab, `faces` what they look at.

Needs the extra `app` (Gradio, Plotly), which no other package uses. May import report, evaluation, inference, tasks,
pretrained, methods, models, data and core.
"""
