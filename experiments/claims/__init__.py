"""The field's claims, tested on real data: `python -m experiments.claims X1 --scale cpu`.

One command an experiment; its exit status says whether the claims hold. Three scales of one code: `smoke` (digits, to
see that it runs: nothing but exact claims is judged), `cpu` (Fashion-MNIST, minutes on two cores) and `full` (CIFAR-10
at the published settings, for an accelerator). Results go to `experiments/results/`.
"""
