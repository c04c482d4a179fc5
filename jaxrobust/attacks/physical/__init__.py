"""One perturbation for many images: universal, patches, stickers."""
