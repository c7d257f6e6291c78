"""Engines: one pool to one server each. Only here do drivers' exceptions become multidb's."""
