"""A vision transformer in plain float64 torch, from a state dict alone: nothing here calls the package."""

import torch
import torch.nn.functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def doubled(module):
    """The module's parameters as float64 leaves that take gradients where the module's do, and its buffers."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    state = {name: value.detach().double().clone() for name, value in module.state_dict().items()}
    trained = dict(module.named_parameters()).keys() - frozen
    return {name: value.requires_grad_(name in trained) for name, value in state.items()}


def part(state, prefix):
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def from_bytes(x):
    """uint8, channels last -> normalised float64, channels first."""
    x = x.movedim(-1, 1).double() / 255
    shape = (3,) + (1,) * (x.ndim - 2)
    return (x - torch.tensor(MEAN).double().view(shape)) / torch.tensor(STD).double().view(shape)


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state, name, x):
    if f"{name}.alpha" in state:
        return state[f"{name}.weight"] * torch.tanh(state[f"{name}.alpha"] * x) + state[f"{name}.bias"]
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def rotated(x, positions):
    """V-JEPA 2's rotary embedding: x (B, H, N, d), positions (B, N, 3); neighbouring channels are partners, and the frequencies
    run twice over each axis' channels."""
    half = x.shape[-1] // 3 // 2
    omega = 10000.0 ** -(torch.arange(half).double() / half)
    y = x.clone()
    for axis in range(3):
        begin, end = 2 * half * axis, 2 * half * (axis + 1)
        angle = (positions[:, None, :, axis, None].double() * omega).tile(2)
        even, odd = x[..., begin:end:2], x[..., begin + 1 : end : 2]
        y[..., begin:end:2] = even * angle[..., ::2].cos() - odd * angle[..., ::2].sin()
        y[..., begin + 1 : end : 2] = odd * angle[..., 1::2].cos() + even * angle[..., 1::2].sin()
    return y


def blocks(state, prefix, x, heads, positions=None, layers=None):
    depth = len({name.split(".")[1] for name in state if name.startswith(prefix + ".")})
    for layer in range(depth) if layers is None else layers:
        name = f"{prefix}.{layer}"
        q, k, v = linear(state, f"{name}.attn.qkv", norm(state, f"{name}.norm1", x)).unflatten(-1, (3, heads, -1)).unbind(2)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        if positions is not None:
            q, k = rotated(q, positions), rotated(k, positions)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear(state, f"{name}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        x = x + linear(state, f"{name}.mlp.fc2", F.gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", x))))
    return x


def encode(state, x, heads, ids=None, table_grid=None):
    """Tokens of normalised images or clips; `table_grid` is the grid of the position table where the images have another."""
    weight = state["patch_embed.proj.weight"]
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    maps = convolve(x, weight, state["patch_embed.proj.bias"], stride=weight.shape[2:])
    tokens, table = maps.flatten(2).mT, state["pos_embed"]
    if table_grid is not None and tuple(maps.shape[2:]) != table_grid:
        picture = table.view(1, *table_grid, -1).permute(0, 3, 1, 2)
        picture = F.interpolate(picture, size=maps.shape[2:], mode="bicubic", align_corners=False)
        table = picture.flatten(2).mT
    tokens = tokens + table
    if ids is not None:
        tokens = torch.stack([row[kept] for row, kept in zip(tokens, ids, strict=True)])
    return norm(state, "norm", blocks(state, "blocks", tokens, heads))


def projector(state, x):
    for layer in range(2):
        x = linear(state, f"layers.{layer}", x)
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        x = (x * state[f"norms.{layer}.weight"] + state[f"norms.{layer}.bias"]).relu()
    return linear(state, "layers.2", x)
