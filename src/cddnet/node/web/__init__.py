"""The page: queue, viewer, uploads and downloads."""
