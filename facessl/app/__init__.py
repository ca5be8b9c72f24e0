"""The local web page: `page` puts the tabs together, one module per tab, the others what these share.

May import report, evaluation, inference, tasks, pretrained, methods, models, data and core; needs the extra `app`."""
