"""The simulated world: cameras, people, weather and light with known truth, and the small models made on it.

Read in this order: `world` (what is filmed), `render` (how a frame comes to be), `film` (how it becomes a clip),
`annotator` (the only reader of truth beside tests). Everything is a pure function of one integer seed. Needs `[cloud]` (cv2).
"""
