"""One file per protocol that evaluates a frozen backbone: a function with the name of its file.
Files with an underscore are the parts of `linear.py`.
May import the rest of evaluation, and what evaluation may import.
"""
