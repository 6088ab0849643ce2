"""Our own folder: the tensor names on disk, the manifest, loading, and the row store."""
