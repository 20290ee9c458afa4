"""Model files: what a job needs, brought to the node's disk and kept there under a cap.

Begin with ``base`` (the words and what the parts promise each other), ``plan`` (what has to happen, a pure function)
and ``cache`` (the front); ``open`` puts the parts together. Behind them stand four groups.

The cache: ``taking`` takes one set for a job, ``match`` finds the file that is meant, ``books`` keep pins and the
line of those who wait, ``room`` evicts, ``carrier`` and ``flight`` have each file come once, ``audit`` looks whether
files are still good.

The disk: ``disk`` owns the files, ``acts`` does the steps, ``layout`` and ``folders`` know where a server keeps what,
``index`` remembers, ``reconcile`` compares, ``baked`` knows what came with the image, ``header``, ``hashing``,
``measure`` and ``lock`` do what they say.

Where a model is to be had: ``identity`` says which model a URL means, ``find`` tries the sources in order by way of
``catalog``, ``huggingface``, ``civitai``, ``plain`` and ``hub``; ``verdict`` decides, ``outages`` count failures.

How it comes: ``download`` goes through the places, ``transfer`` brings one file in ``pieces``, ``source`` follows
redirects and tokens, ``connection`` receives, ``answers`` are understood, ``partial`` remembers what is there,
``stamina`` and ``bandwidth`` say how long and how fast.

Beside these ``manifest``, ``declared`` and ``dynamic`` read what a node begins with; ``kinds`` knows folders' names.
"""
