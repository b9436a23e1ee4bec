"""The study: raw interactions to tables and figures. `snakemake` runs all of config/config.yaml.

Each rule calls one stage of the `rere` command, which its log shows. docs/files.md explains the
paths below results/, and docs/configuration.md the keys of the config.
"""

from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


report: "workflow/report/study.rst"


include: "workflow/rules/environment.smk"
include: "workflow/rules/config.smk"
include: "workflow/rules/common.smk"
include: "workflow/rules/resources.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/backbones.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/adapters.smk"
include: "workflow/rules/baselines.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/claims.smk"
include: "workflow/rules/benchmarks.smk"


# On a cluster these run where Snakemake does, since other machines may have no network.
localrules:
    fetch,
    backbone,


rule all:
    """Make every table of the study, its figures and its explorer, and decide its claims"""
    default_target: True
    input:
        expand("results/tables/{table}.csv", table=study.tables),
        expand("results/tables/{table}.explorer.html", table=study.tables),
        [f"results/figures/{name}.pdf" for table in study.tables for name in study.figures(table)],
        ["results/claims.md"] if study.claims else [],
