"""A face from a picture, a pose from a drawing, a learned word, and a style."""

from scene import opened

model, settings = opened("portrait.toml")
image = model.text_to_image(
    "a portrait of a sailor in a <coat>, (soft light:1.2), 35mm film",
    negative_prompt="ugly",
    face_image="pictures/face.png",
    pose_image="pictures/pose.png",
    **settings,
)
image.save("portrait.png")
print(f"portrait.png: {image.width} x {image.height}, {model.digest}")
