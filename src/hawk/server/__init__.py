"""`hawk serve`: images over HTTP. The only importer of the web framework and of prometheus-client."""
