"""FID and its relatives: figures in the features of the Inception network that the field uses."""
