"""Training on two hosts, which network namespaces are taken for."""
