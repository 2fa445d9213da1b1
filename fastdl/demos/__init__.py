"""Small programs that show fastdl at work: ``fastdl demo cnn``."""
