"""How a deformable convolution and its gradients are launched on a GPU: columns of a few pixels, and matrix products.

The columns of a *batch of work* (some images, or some pixels of one) lie as [image][group][pixel][tap][channel of the
group], and the weights as [group][output][tap][channel of the group], so that each product reads its operands as they
are and writes its result in the caller's layout. `Product` is cuBLAS; nothing else here depends on a GPU.
"""
