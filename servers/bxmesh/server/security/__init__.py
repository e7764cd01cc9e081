"""Who may call the mesh."""
