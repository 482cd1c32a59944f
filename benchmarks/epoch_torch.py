"""The gradient loss in PyTorch: eager, differentiated twice, data reshuffled in each epoch."""

import torch
from serve import BATCH_SIZE, load_data, serve

x, y = map(torch.from_numpy, load_data())
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10), torch.nn.Softmax(dim=1)
)
for layer in (model[0], model[2]):
    torch.nn.init.xavier_uniform_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
optimizer = torch.optim.Adam(model.parameters(), eps=1e-7)


def epoch():
    order = torch.randperm(len(x))
    batches = zip(x[order].split(BATCH_SIZE), y[order].split(BATCH_SIZE), strict=True)
    losses = []
    for batch_x, batch_y in batches:
        batch_x.requires_grad_()
        batch_y.requires_grad_()
        loss = ((batch_y - model(batch_x)) ** 2).mean(dim=1).sum()
        gradients = torch.autograd.grad(loss, [batch_x, batch_y], create_graph=True)
        gradient_loss = sum((gradient**2).mean() for gradient in gradients)
        optimizer.zero_grad()
        gradient_loss.backward()
        optimizer.step()
        losses.append(gradient_loss.detach())
    return torch.stack(losses).mean()


serve(epoch)
