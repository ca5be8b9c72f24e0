"""The local web page: `page` puts the tabs together and serves them, one module per tab, `faces` what they look at.

Needs the extra `app` (Gradio, Plotly), which no other package may import. May import every package but `cli`.
"""
