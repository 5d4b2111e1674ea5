"""The plugin interface of federated methods, what it is made of, and pFedST."""
