"""A reader's photos, of 8×8 in the end, and some that are kept out of training."""

from reader_photos import write

RUN = {
    "ncsn-fast schedule photos/ --image-size 32": "ncsn-fast schedule photos/ --image-size 8",
    "ncsn-fast train --data photos/ --image-size 32 --flip --out runs/photos --steps 500 "
    "--sample-every 250 --samples 16": (
        "ncsn-fast train --data photos/ --image-size 8 --flip --steps 2 --sample-every 2 "
        "--samples 2 --ngf 4 --batch-size 4 --num-levels 4 --steps-per-level 1 --out runs/photos"
    ),
    "ncsn-fast train --resume --out runs/photos --steps 5000": (
        "ncsn-fast train --resume --out runs/photos --steps 4"
    ),
    "ncsn-fast sample runs/photos/model.safetensors -n 100 --gif --out photos_samples": (
        "ncsn-fast sample runs/photos/model.safetensors -n 4 --gif --out photos_samples"
    ),
    "ncsn-fast sample runs/photos/model.safetensors -n 100 --out photos_fast --method dpmpp_2m "
    "--eta 1 --steps 20": (
        "ncsn-fast sample runs/photos/model.safetensors -n 4 --method dpmpp_2m --eta 1 --steps 3 "
        "--out photos_fast"
    ),
    "ncsn-fast evaluate runs/photos/model.safetensors -n 200 --reference others/ --train photos/": (
        "ncsn-fast evaluate runs/photos/model.safetensors -n 8 --reference others/ --train photos/"
    ),
}
write("photos")
write("others")
