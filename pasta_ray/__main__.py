"""`python -m pasta_ray` is `pasta-ray`."""

from pasta_ray.cli import main

if __name__ == "__main__":
    main()
