"""What each stage of the pipeline does with the rooms of the package."""
