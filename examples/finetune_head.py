"""Fine-tune with the backbone frozen: only the head gets gradients and optimiser state."""

import jax
import jax.numpy as jnp
import optax

import resnest_jax


def main() -> tuple[dict, dict, list[float]]:
    """Train the head to classify brightness; return parameters before and after, and losses."""
    # With weights: model, variables = resnest_jax.load_pretrained("resnest14", num_classes=3, ...)
    model = resnest_jax.create_model("resnest14", num_classes=3, norm="frozen")
    labels = jnp.arange(6) % 3
    noise = jax.random.normal(jax.random.key(0), (6, 32, 32, 3))
    images = noise + labels[:, None, None, None]  # the brighter, the higher the class
    variables = jax.jit(model.init)(jax.random.key(1), images)
    params, before = variables["params"], variables["params"]

    def label(path, _):
        return "train" if path[0].key == "head" else "freeze"

    labels_of_params = jax.tree_util.tree_map_with_path(label, params)
    transforms = {"train": optax.adam(0.05), "freeze": optax.set_to_zero()}
    optimizer = optax.multi_transform(transforms, labels_of_params)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state):
        def loss_fn(params):
            # norm="frozen" uses running statistics in training too, and does not change them.
            logits, _ = model.apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    losses = []
    for _ in range(20):
        params, opt_state, loss = step(params, opt_state)
        losses.append(float(loss))
    return before, params, losses


if __name__ == "__main__":
    print(main()[2])
