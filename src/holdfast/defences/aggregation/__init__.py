"""Rules by which a server joins the updates of its clients."""
