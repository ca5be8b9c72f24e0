"""FRA by plain loops over images, heads, pixels and regions, from the papers alone; it reads nothing but weights."""

import math

import torch


def dot(u, v):
    return sum(u[i] * v[i] for i in range(len(u)))


def f_s(u, v):
    return dot(u, v) / (torch.sqrt(dot(u, u)) * torch.sqrt(dot(v, v)))


def mlp(layers, rows):
    """Projector or predictor on a list of vectors: linear, batch norm over the list, ReLU, linear."""
    first, norm, _, last = layers
    hidden = [first.weight @ row for row in rows]
    mean = sum(hidden) / len(hidden)
    var = sum((h - mean) ** 2 for h in hidden) / len(hidden)
    out = []
    for h in hidden:
        h = (h - mean) / torch.sqrt(var + norm.eps) * norm.weight + norm.bias
        out.append(last.weight @ torch.where(h > 0, h, torch.zeros_like(h)))
    return out


def softmax(values):
    exponentials = [torch.exp(v) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def position(row, column, height, width, channels):
    """Sine position of one cell: half of the channels for its row, half for its column, sine and cosine in turn."""
    out = []
    for cell, cells in ((row, height), (column, width)):
        angle = (cell + 1) / (cells + 1e-6) * 2 * math.pi
        for k in range(channels // 4):
            frequency = 10000 ** (-2 * k / (channels // 2))
            out += [math.sin(angle * frequency), math.cos(angle * frequency)]
    return torch.tensor(out, dtype=torch.float64)


def layer_norm(norm, x):
    centered = x - x.mean()
    return centered / torch.sqrt((centered**2).mean() + norm.eps) * norm.weight + norm.bias


def attention(module, queries, keys, values):
    """Multi-head attention over lists of vectors, head by head."""
    width = len(queries[0])
    per_head = width // module.num_heads
    weights, biases = module.in_proj_weight, module.in_proj_bias
    q = [weights[:width] @ x + biases[:width] for x in queries]
    k = [weights[width : 2 * width] @ x + biases[width : 2 * width] for x in keys]
    v = [weights[2 * width :] @ x + biases[2 * width :] for x in values]
    out = []
    for m in range(len(q)):
        heads = []
        for start in range(0, width, per_head):
            part = slice(start, start + per_head)
            shares = softmax([dot_product / math.sqrt(per_head) for dot_product in (q[m][part] @ x[part] for x in k)])
            heads.append(sum(share * x[part] for share, x in zip(shares, v, strict=True)))
        out.append(module.out_proj.weight @ torch.cat(heads) + module.out_proj.bias)
    return out


def mask_embeddings(decoder, feature_map):
    """Q_i of one image (C, h, w): MaskFormer's decoder on DETR's layers, from the two papers."""
    _, height, width = feature_map.shape
    cells = [(row, column) for row in range(height) for column in range(width)]
    memory = [decoder.project.weight @ feature_map[:, r, c] + decoder.project.bias for r, c in cells]
    keys = [m + position(r, c, height, width, len(m)) for m, (r, c) in zip(memory, cells, strict=True)]
    queries = list(decoder.queries.weight)
    state = [torch.zeros_like(q) for q in queries]
    for layer in decoder.layers:
        looking = [x + q for x, q in zip(state, queries, strict=True)]
        found = attention(layer.self_attention, looking, looking, state)
        state = [layer_norm(layer.norm1, x + f) for x, f in zip(state, found, strict=True)]
        looking = [x + q for x, q in zip(state, queries, strict=True)]
        found = attention(layer.cross_attention, looking, keys, memory)
        state = [layer_norm(layer.norm2, x + f) for x, f in zip(state, found, strict=True)]
        for m, x in enumerate(state):
            hidden = layer.linear1.weight @ x + layer.linear1.bias
            hidden = torch.where(hidden > 0, hidden, torch.zeros_like(hidden))
            state[m] = layer_norm(layer.norm3, x + layer.linear2.weight @ hidden + layer.linear2.bias)
    out = []
    for x in state:
        x = layer_norm(decoder.norm, x)
        for k in (0, 2, 4):
            x = decoder.mlp[k].weight @ x + decoder.mlp[k].bias
            x = torch.where(x > 0, x, torch.zeros_like(x)) if k < 4 else x
        out.append(x)
    return out


def network(backbone, heads, x, heatmap_temperature):
    """One network on one view: z per image, S[b][p][m], z^m per image (Eq. 1, 4, 5)."""
    maps = backbone.forward_features(x)
    images, channels = maps.shape[:2]
    pixels = [[maps[b].reshape(channels, -1)[:, p] for p in range(maps[0, 0].numel())] for b in range(images)]
    z = mlp(heads.projector.layers, [sum(rows) / len(rows) for rows in pixels])
    dense = mlp(heads.local_projector.layers, [row for rows in pixels for row in rows])  # Eq. 1
    similarity, pooled = [], []
    for b in range(images):
        queries = mask_embeddings(heads.decoder, maps[b])  # Q_i of this image alone
        s = [[f_s(dense[b * len(pixels[b]) + p], q) for q in queries] for p in range(len(pixels[b]))]
        similarity.append(s)
        heat = [softmax([value / heatmap_temperature for value in row]) for row in s]
        for m in range(len(queries)):  # Eq. 4
            total = sum(heat[p][m] for p in range(len(s)))
            pooled.append(sum(heat[p][m] * pixels[b][p] for p in range(len(s))) / total)
    projected = mlp(heads.local_projector.layers, pooled)  # Eq. 5: the same projector
    n = len(projected) // images
    return z, similarity, [projected[b * n : (b + 1) * n] for b in range(images)]


def loops(model, batch):
    """Every term of Eq. 2-8 (global, local, relation, ME-MAX), each a scalar; and the total."""
    args = model.args
    online, target = [], []
    for x in batch.views:
        # Section 3.2: the vector of M at a pixel is s of Eq. 2.
        online.append(network(model.backbone, model.heads, x, args.student_temperature))
        with torch.no_grad():
            target.append(network(model.target_backbone, model.target_heads, x, args.student_temperature))
    l_global = l_local = relation = spread = 0
    images, n = len(batch), args.num_regions
    for i, j in ((0, 1), (1, 0)):  # Eq. 6 and 7
        p = mlp(model.predictor.layers, online[i][0])
        l_global -= sum(f_s(p[b], target[j][0][b]) for b in range(images)) / images
        p = mlp(model.local_predictor.layers, [z for regions in online[i][2] for z in regions])
        l_local -= sum(f_s(p[b * n + m], target[j][2][b][m]) for b in range(images) for m in range(n)) / (images * n)
    for i in (0, 1):  # Eq. 2 and 3
        student = [softmax([s / args.student_temperature for s in row]) for image in online[i][1] for row in image]
        teacher = [softmax([s / args.teacher_temperature for s in row]) for image in target[i][1] for row in image]
        for _ in range(args.sinkhorn_iterations):
            for m in range(n):
                mass = sum(row[m] for row in teacher)
                for row in teacher:
                    row[m] = row[m] / mass
            for row in teacher:
                mass = sum(row)
                for m in range(n):
                    row[m] = row[m] / mass
        entropy = [-sum(t[m] * torch.log(s[m]) for m in range(n)) for s, t in zip(student, teacher, strict=True)]
        relation += sum(entropy) / len(entropy)
        mean = [sum(row[m] for row in student) / len(student) for m in range(n)]
        spread += math.log(n) + sum(q * torch.log(q) for q in mean)
    total = args.lambda_c * l_global + (1 - args.lambda_c) * l_local
    total = total + args.lambda_r * (relation + args.memax_weight * spread)
    terms = {
        "global_consistency": l_global,
        "local_consistency": l_local,
        "semantic_relation": relation,
        "me_max": spread,
    }
    return terms, total
