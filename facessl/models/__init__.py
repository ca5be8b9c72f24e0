"""The backbone behind one interface, frozen teachers, tensors compared name by name, and `layers`.
May import views, data and core.
"""
