"""What `broken.Importing` imports, and nobody else."""
