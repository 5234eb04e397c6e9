"""Files: whole or not there, read within bounds, sealed; and folders of models that other people wrote."""
