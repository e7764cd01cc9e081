"""What a geometry worker offers, under which others find it, and the kinds of work it takes."""

QUEUE = "geometry"
AGENT_TYPE = "geometry.worker"
CAPABILITIES = ("geometry.model", "geometry.gradients", "geometry.session")

CREATE_MODEL = "geometry.create_model"
GRADIENTS = "geometry.gradients"
OPEN_SESSION = "geometry.open_session"
