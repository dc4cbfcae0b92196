"""Commands on a Ray cluster: preparation and prediction over Ray Data, training over Ray Train."""
