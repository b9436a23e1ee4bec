"""
Benchmarks, on demand, for an idle machine, where spinning threads are faster.

REQUIRED INPUTS: results/data/{dataset}/ and the benchmark's models
OUTPUTS: results/tables/{benchmark}.csv, .md, .curves.csv (speed); results/figures/{benchmark}.pdf
"""


rule benchmark_speed:
    """Time search, training and preprocessing against plain implementations"""
    input:
        data=benchmark_data,
        models=lambda wildcards: [
            path
            for folder in study.benchmarks[wildcards.benchmark].folders
            for path in files_of_model(folder)
        ],
    output:
        csv=report(
            "results/tables/{benchmark}.csv",
            caption="../report/speed.rst",
            category="Tables",
            labels={"table": "{benchmark}"},
        ),
        markdown="results/tables/{benchmark}.md",
    log:
        "logs/benchmark_speed/{benchmark}.log",
    benchmark:
        "benchmarks/benchmark_speed/{benchmark}.tsv"
    wildcard_constraints:
        benchmark=benchmarks("speed"),
    conda:
        "../../envs/rere.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=growing(32_000),
        runtime=growing(8 * 60),
        disk_mb=1_000,
    params:
        models=lambda wildcards: study.benchmarks[wildcards.benchmark].folders,
        names=lambda wildcards: [m.name for m in study.benchmarks[wildcards.benchmark].models],
        rows=lambda wildcards: [m.rows for m in study.benchmarks[wildcards.benchmark].models],
        flags=benchmark_flags,
        launch=one_process,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        OMP_WAIT_POLICY=active {params.launch:q} benchmark speed \
            --models {params.models:q} \
            --names {params.names:q} \
            --test-rows {params.rows:q} \
            --output {output.csv:q} \
            {params.flags:q}
        cat {output.markdown:q}
        """


rule benchmark_speed_curves:
    """Time searches by catalogue size, beams and prompt length, preprocessing by reviews"""
    input:
        data=benchmark_data,
        model=lambda wildcards: files_of_model(study.benchmarks[wildcards.benchmark].folders[0]),
    output:
        curves="results/tables/{benchmark}.curves.csv",
    log:
        "logs/benchmark_speed_curves/{benchmark}.log",
    benchmark:
        "benchmarks/benchmark_speed_curves/{benchmark}.tsv"
    wildcard_constraints:
        benchmark=benchmarks("speed"),
    conda:
        "../../envs/rere.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=growing(32_000),
        runtime=growing(8 * 60),
        disk_mb=1_000,
    params:
        model=lambda wildcards: study.benchmarks[wildcards.benchmark].folders[0],
        flags=benchmark_flags,
        launch=one_process,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        OMP_WAIT_POLICY=active {params.launch:q} benchmark speed-curves \
            --model {params.model:q} \
            --output {output.curves:q} \
            {params.flags:q}
        """


rule benchmark_rollouts:
    """Measure what each rollout strategy finds and costs, and prove the true top 10"""
    input:
        data=benchmark_data,
        model=lambda wildcards: files_of_model(study.benchmarks[wildcards.benchmark].folders[0]),
    output:
        csv=report(
            "results/tables/{benchmark}.csv",
            caption="../report/rollouts.rst",
            category="Tables",
            labels={"table": "{benchmark}"},
        ),
        markdown="results/tables/{benchmark}.md",
    log:
        "logs/benchmark_rollouts/{benchmark}.log",
    benchmark:
        "benchmarks/benchmark_rollouts/{benchmark}.tsv"
    wildcard_constraints:
        benchmark=benchmarks("rollouts"),
    conda:
        "../../envs/rere.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=growing(32_000),
        runtime=growing(8 * 60),
        disk_mb=1_000,
    params:
        model=lambda wildcards: study.benchmarks[wildcards.benchmark].folders[0],
        flags=benchmark_flags,
        launch=one_process,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        OMP_WAIT_POLICY=active {params.launch:q} benchmark rollouts \
            --model {params.model:q} \
            --output {output.csv:q} \
            {params.flags:q}
        cat {output.markdown:q}
        """


rule draw_benchmark:
    """Draw a benchmark as curves"""
    input:
        table=benchmark_curves,
        src=code_files("benchmarks/figures.py", "reporting/figures.py", "reporting/rere.mplstyle"),
    output:
        pdf="results/figures/{benchmark}.pdf",
        png=report(
            "results/figures/{benchmark}.png",
            caption="../report/benchmark.rst",
            category="Figures",
            labels={"figure": "{benchmark}"},
        ),
    log:
        "logs/draw_benchmark/{benchmark}.log",
    benchmark:
        "benchmarks/draw_benchmark/{benchmark}.tsv"
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        mem_mb=growing(4_000),
        runtime=growing(60),
        disk_mb=1_000,
    params:
        measures=lambda wildcards: study.benchmarks[wildcards.benchmark].measures,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        python -m rere benchmark {params.measures:q}-figure \
            --table {input.table:q} \
            --output {output.pdf:q} {output.png:q}
        """
