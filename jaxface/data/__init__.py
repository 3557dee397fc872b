"""From records to batches: tasks, sources, tables, images, faces, augmentation, sampling, the input pipeline."""
