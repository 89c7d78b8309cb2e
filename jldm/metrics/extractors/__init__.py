"""Small frozen networks whose features samples are compared in; their weights lie beside the code, with their hash."""
