"""From photos to what a run's model says of the faces in them: the predictor, the stream that feeds it, files, pictures, the server."""
