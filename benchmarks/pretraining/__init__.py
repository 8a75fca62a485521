"""Pretraining at size: what preparation and loading cost, and whether killed runs end like unbroken ones."""
