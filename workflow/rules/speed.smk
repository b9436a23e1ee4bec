"""
Measurements of the search, where the config has `speed`; not part of `rule all`.

REQUIRED INPUTS:

    the model that `speed` names, a run's or a backbone
    results/data/{dataset}/

OUTPUTS:

    results/tables/speed.csv            time, memory and results beside transformers' `generate`
    results/tables/speed.curves.csv     what the figure shows
    results/tables/speed.md             the table to read and to paste
    results/figures/speed.pdf, .png
"""

if study.speed is not None:

    rule speed:
        """Time the search beside transformers' `generate`; the machine should be idle"""
        input:
            catalogue=f"results/data/{study.speed.dataset}/items.parquet",
            test=f"results/data/{study.speed.dataset}/test.parquet",
            model=study.speed.model_folder,
        output:
            csv=report("results/tables/speed.csv", caption="../report/speed.rst", category="Tables"),
            curves="results/tables/speed.curves.csv",
            markdown="results/tables/speed.md",
        log:
            "logs/speed/speed.log",
        benchmark:
            "benchmarks/speed/speed.tsv"
        conda:
            "../../envs/rere.yaml"
        threads: 2
        resources:
            gpu=1,
        params:
            data=subpath(input.test, parent=True),
            flags=flags(study.speed),
        shell:
            r"""
            exec &> >(tee {log:q})
            set -x

            # Alone on the machine, threads that spin are faster, on both sides.
            OMP_WAIT_POLICY=active python -m rere speed \
                --model {input.model:q} \
                --data {params.data:q} \
                --output {output.csv:q} \
                {params.flags:q}
            cat {output.markdown:q}
            """

    rule speed_figure:
        """Draw the measurements against catalogue size, beams and prompt length"""
        input:
            curves="results/tables/speed.curves.csv",
            src=source("speed/figure.py"),
        output:
            pdf="results/figures/speed.pdf",
            png=report(
                "results/figures/speed.png", caption="../report/speed.rst", category="Figures"
            ),
        log:
            "logs/speed/figure.log",
        benchmark:
            "benchmarks/speed/figure.tsv"
        conda:
            "../../envs/rere.yaml"
        shell:
            r"""
            exec &> >(tee {log:q})
            set -x

            python -m rere speed-figure \
                --curves {input.curves:q} \
                --output {output.pdf:q} {output.png:q}
            """
