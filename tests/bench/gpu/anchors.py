"""What PyTorch takes for the shapes of gpu_mixer_bench and gemv_bench, to be run beside them.

    python3 tests/bench/gpu/anchors.py

Needs PyTorch with CUDA; flash-linear-attention is measured when it is installed (packages
`flash-linear-attention`, `fla-core` and `einops`, all of them Python alone).
Times are medians of replays of a CUDA graph of several launches. SDPA has no paged decode: its keys
and values lie in one piece, which flatters it.
"""

import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

LAUNCHES = 10
REPLAYS = 15
BACKENDS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION)


def median_us(run):
    """Median time of one call of `run` inside a graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            run()
    times = []
    for _ in range(REPLAYS):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / LAUNCHES)
    return statistics.median(times)


def random(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def read_gbps():
    x = torch.empty(1 << 30, device="cuda", dtype=torch.bfloat16)
    out = torch.empty((), device="cuda", dtype=torch.float32)

    def run():
        torch.sum(x, dim=0, dtype=torch.float32, out=out)

    return 2 * (1 << 30) / median_us(run) / 1e3


def attention(batch, query, keys, heads, kv_heads, dim):
    """Best of the backends: microseconds and its name."""
    q = random(batch, heads, query, dim)
    k, v = random(batch, kv_heads, keys, dim), random(batch, kv_heads, keys, dim)
    best = (float("inf"), "none")
    for backend in BACKENDS:
        try:
            with sdpa_kernel(backend):
                took = median_us(
                    lambda: scaled_dot_product_attention(
                        q, k, v, is_causal=query > 1, enable_gqa=True
                    )
                )
            best = min(best, (took, backend.name.split("_")[0].lower()))
        except RuntimeError as error:
            print(f"  {backend.name}: {str(error).splitlines()[0][:100]}")
    return best


def product(rows, n, k):
    """y = x W for weights that rotate through more memory than the cache has."""
    copies = max(1, (256 << 20) // (n * k * 2))
    weights = [random(n, k) for _ in range(copies)]
    x = random(rows, k)
    y = torch.empty(rows, n, device="cuda", dtype=torch.bfloat16)
    turn = [0]

    def run():
        turn[0] = (turn[0] + 1) % copies
        torch.mm(x, weights[turn[0]].t(), out=y)

    return median_us(run)


def gated_delta(batch, length, query_heads, heads, dim, whole):
    """fla's chunked rule in bf16; `whole`: with what gpu_mixer_bench's operation has beside it, the
    short convolutions and the gated norm. None where fla is not installed."""
    try:
        from fla.modules import FusedRMSNormGated, ShortConvolution
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    except ImportError:
        return None
    inputs = [random(batch, length, n * dim) for n in (query_heads, query_heads, heads)]
    gate = -torch.rand(batch, length, heads, device="cuda")
    beta = torch.rand(batch, length, heads, device="cuda").bfloat16()
    z = random(batch, length, heads, dim)
    convolutions = [
        ShortConvolution(x.shape[-1], 4, activation="silu").cuda().bfloat16() for x in inputs
    ]
    norm = FusedRMSNormGated(dim).cuda().bfloat16()

    def run():
        parts = [c(x)[0] for c, x in zip(convolutions, inputs)] if whole else inputs
        q, k, v = (x.view(batch, length, -1, dim) for x in parts)
        out = chunk_gated_delta_rule(
            q, k, v, gate, beta, use_qk_l2norm_in_kernel=True, output_final_state=True
        )[0]
        return norm(out, z) if whole else out

    with torch.no_grad():
        return median_us(run)


def main():
    torch.manual_seed(0)
    read = read_gbps()
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, reads {read:.0f} GB/s\n")
    print("| operation | shape | us | rate | by |\n| --- | --- | --- | --- | --- |")
    for batch, keys, heads, kv_heads, dim in [
        (64, 32768, 32, 8, 128),
        (16, 32768, 32, 8, 128),
        (1, 32768, 32, 8, 128),
        (64, 8192, 9, 3, 64),
    ]:
        took, name = attention(batch, 1, keys, heads, kv_heads, dim)
        rate = 4 * batch * keys * kv_heads * dim / took / 1e3
        print(
            f"| decode attention | {batch} x {keys}, {heads}/{kv_heads} x {dim} | {took:.0f} "
            f"| {rate:.0f} GB/s | {name} |"
        )
    for batch, length, heads, kv_heads, dim in [
        (1, 8192, 32, 8, 128),
        (4, 2048, 32, 8, 128),
        (1, 8192, 9, 3, 64),
    ]:
        took, name = attention(batch, length, length, heads, kv_heads, dim)
        rate = 2 * batch * length * length * heads * dim / took / 1e6
        print(
            f"| prefill attention | {batch} x {length}, {heads}/{kv_heads} x {dim} | {took:.0f} "
            f"| {rate:.0f} TFLOP/s | {name} |"
        )
    for n, k in [(4096, 4096), (28672, 4096), (4096, 14336)]:
        for rows in (1, 8, 64, 2048):
            took = product(rows, n, k)
            rate = f"{2 * n * k / took / 1e3:.0f} GB/s, {2 * rows * n * k / took / 1e6:.0f} TFLOP/s"
            print(f"| product bf16 | {rows} x {k} x {n} | {took:.1f} | {rate} | cuBLAS |")
    for batch, length, query_heads, whole in [
        (4, 8192, 16, False),
        (4, 8192, 32, False),
        (4, 8192, 32, True),
        (1, 32768, 16, False),
        (1, 32768, 32, False),
        (1, 32768, 32, True),
        (1, 2048, 32, False),
    ]:
        took = gated_delta(batch, length, query_heads, 32, 128, whole)
        text = "fla is not installed" if took is None else f"{took:.0f}"
        with_all = ", with convolutions, norm and gate" if whole else ""
        shape = f"{batch} x {length}, {query_heads}/32 x 128"
        print(f"| gated delta prefill{with_all} | {shape} | {text} | | fla |")


if __name__ == "__main__":
    main()
