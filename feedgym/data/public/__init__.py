"""Readers of public data sets, recognised by their files; :mod:`~feedgym.data.public.finders` lists them."""
