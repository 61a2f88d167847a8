"""Instances come in over the network and are kept before that is confirmed."""
