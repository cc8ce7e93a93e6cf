"""Judging an encoder by labels: fine-tuning, linear probing, nearest neighbours."""
