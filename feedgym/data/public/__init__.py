"""Public data sets, by the files that they are known by; :mod:`~feedgym.data.public.finders` lists them."""
