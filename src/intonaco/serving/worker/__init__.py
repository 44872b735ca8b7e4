"""One process per release: loads the pipeline, attests what it loaded, makes images."""
