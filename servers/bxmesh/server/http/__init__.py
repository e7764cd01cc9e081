"""HTTP for people and browsers: a client of the mesh that does everything with the caller's own key."""
