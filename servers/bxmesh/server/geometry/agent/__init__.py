"""The geometry worker: an agent of the mesh in a process of its own, the only one with cctbx."""
