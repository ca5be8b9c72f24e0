"""The backbone behind one interface, frozen teachers, what a file of weights tells of its network, and `layers`.
May import views, data and core.
"""
