"""An endless source of captioned pictures: drawn scenes, of which none comes twice."""
