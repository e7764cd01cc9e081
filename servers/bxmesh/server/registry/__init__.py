"""The registry service: who is in the mesh and what they can do."""
