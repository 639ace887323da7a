"""
What can be done with instances, each inside one transaction of a store.

Pure of gRPC and SQL, like `model`: the store is a port, and brings the time with it. The rules are in
`model`; here they meet the rest of the tree.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from hopper_common.errors import FieldViolation, InvalidArgument
from hopper_registry.errors import (
    InstanceCycle,
    InstanceExists,
    InstanceHasChildren,
    InstanceNotFound,
    InstanceWrongState,
    ParentNotRunning,
    ProjectNotFound,
)
from hopper_registry.model import (
    ROOT,
    TREE_LIMIT,
    Instance,
    InstanceSpec,
    RunSummary,
    Scope,
    State,
    Verb,
    check_etag,
    check_parent_scope,
    check_spec,
    with_display_name,
)
from hopper_registry.ports import InstanceStore

CHILDREN_NAMED = 5  # in an error; enough to begin with


def ensure_root(store: InstanceStore) -> None:
    """Make `instances/global`, and let it run, if this is the first start."""
    if store.instance(ROOT) is None:
        _add(store, ROOT, InstanceSpec(scope=Scope.GLOBAL))
        start(store, ROOT)


def create(store: InstanceStore, name: str, spec: InstanceSpec) -> Instance:
    """
    Add a node, in state CREATED.

    Raises:
        InvalidArgument: See `model.check_spec`.
        InstanceExists: The name is taken, or the project has an instance.
        InstanceCycle, InstanceParentInvalid: It cannot stand there.
        InstanceNotFound: There is no such parent. InstanceWrongState: The parent is terminated.
        ProjectNotFound: There is no such project.
    """
    check_spec(spec)
    if spec.parent == name:
        raise InstanceCycle(instance=name, parent=spec.parent)
    if store.instance(name):
        raise InstanceExists(f"the id of {name} is taken: choose another", instance=name)
    _check_place(store, spec)
    _check_project(store, spec.project)
    return _add(store, name, spec)


def _check_place(store: InstanceStore, spec: InstanceSpec) -> None:
    if not spec.parent:  # only GLOBAL gets here, and the one there is has been made
        check_parent_scope(spec.scope, None)
    parent = get(store, spec.parent)
    check_parent_scope(spec.scope, parent.spec.scope)
    if parent.state is State.TERMINATED:
        raise InstanceWrongState(
            f"{parent.name} is {parent.state} and takes no children: choose another parent",
            instance=parent.name,
            state=parent.state,
            verb="CREATE",
        )


def _check_project(store: InstanceStore, project: str) -> None:
    if not project:
        return
    if not store.has_project(project):
        raise ProjectNotFound(f"there is no project {project}: register it first", project=project)
    if other := store.instance_for(project):
        raise InstanceExists(
            f"{other} stands for {project} already: terminate it, or take its project away", instance=other
        )


def _add(store: InstanceStore, name: str, spec: InstanceSpec) -> Instance:
    spec = with_display_name(spec, name)
    instance = Instance(name=name, spec=spec, revision=1, create_time=store.now, update_time=store.now)
    store.save_instance(instance)
    return instance


def get(store: InstanceStore, name: str) -> Instance:
    """
    The instance of that name.

    Raises:
        InstanceNotFound: There is none.
    """
    instance = store.instance(name)
    if instance is None:
        raise InstanceNotFound(f"there is no instance {name}", instance=name)
    return instance


def tree(store: InstanceStore, root: str, *, terminated: bool) -> Sequence[Instance]:
    """
    An instance and everything under it, the upper levels first.

    Args:
        root: The top; default the root of all.
        terminated: Terminated ones too. The top is there in any case.

    Raises:
        InstanceNotFound: There is no such top.
        InvalidArgument: More than `TREE_LIMIT` nodes: part of a tree would pass for all of it.
    """
    top = get(store, root or ROOT)
    nodes = store.subtree(top.name, limit=TREE_LIMIT + 1, terminated=terminated)
    if len(nodes) > TREE_LIMIT:
        violation = FieldViolation(
            "root", f"has more than {TREE_LIMIT} nodes: choose one further down, or list instances by parent"
        )
        raise InvalidArgument(violations=[violation])
    return nodes


def update(
    store: InstanceStore, name: str, etag: str, change: Callable[[InstanceSpec], InstanceSpec]
) -> Instance:
    """
    Change what is said about an instance. A change that changes nothing leaves it as it is, etag and all.

    Args:
        etag: What the caller has seen; empty: whatever it is now.
        change: From the spec as it is to the one wanted, with the same parent and scope; may raise.

    Raises:
        InstanceNotFound: There is none. EtagMismatch: Somebody else changed it.
        InvalidArgument: The spec would break the rules of its scope.
        ProjectNotFound, InstanceExists: As for `create`.
    """
    instance = get(store, name)
    check_etag(instance, etag)
    updated = instance.updated(change(instance.spec), store.now)
    if updated.spec.project != instance.spec.project:
        _check_project(store, updated.spec.project)
    if updated is not instance:
        store.save_instance(updated)
    return updated


# The verbs. Each raises InstanceNotFound, and InstanceWrongState where `model.LIFECYCLE` has no such move.


def start(store: InstanceStore, name: str) -> Instance:
    """
    Bring an instance up. Watchers see both steps, STARTING and RUNNING.

    Raises:
        ParentNotRunning: Start from the top.
    """
    starting = get(store, name).moved(Verb.START, store.now)
    _check_parent_runs(store, starting)
    store.save_instance(starting)
    running = starting.moved(Verb.RUN, store.now)
    store.save_instance(running)
    return running


def _check_parent_runs(store: InstanceStore, instance: Instance) -> None:
    if instance.name == ROOT:
        return
    parent = get(store, instance.spec.parent)
    if parent.state is not State.RUNNING:
        raise ParentNotRunning(
            f"{parent.name}, the parent of {instance.name}, is {parent.state}: it must be RUNNING first",
            instance=instance.name,
            parent=parent.name,
            state=parent.state,
        )


def pause(store: InstanceStore, name: str, reason: str) -> Instance:
    """Stop handing tasks out, here and below: the router looks at the whole path."""
    return _move(store, name, Verb.PAUSE, reason)


def resume(store: InstanceStore, name: str) -> Instance:
    """Go on after a pause."""
    return _move(store, name, Verb.RESUME)


def stop(store: InstanceStore, name: str, reason: str) -> Instance:
    """
    Wind an instance down, and everything under it that can be, children before their parents.

    They are STOPPING until the router reports that no task runs there (`report_stopped`), even if none does.
    """
    stopping = get(store, name).moved(Verb.STOP, store.now, reason)
    below = [instance for instance in store.subtree(name) if instance.name != name]
    for instance in reversed(below):
        if instance.can(Verb.STOP):
            store.save_instance(instance.moved(Verb.STOP, store.now, reason))
    store.save_instance(stopping)
    return stopping


def terminate(store: InstanceStore, name: str) -> Instance:
    """
    End an instance for good. It stays readable, and its project may have another instance.

    Raises:
        InstanceHasChildren: Some are not terminated; names the first few.
    """
    terminated = get(store, name).moved(Verb.TERMINATE, store.now)
    children = [child.name for child in store.instances(parent=name) if child.state is not State.TERMINATED]
    if children:
        raise InstanceHasChildren(
            f"{name} has {len(children)} children: terminate them first",
            instance=name,
            children=", ".join(children[:CHILDREN_NAMED]),
        )
    store.save_instance(terminated)
    return terminated


def report_stopped(store: InstanceStore, name: str, reason: str, run: RunSummary | None) -> Instance:
    """
    Note that no task runs any more on an instance that is stopping, and archive an ORCHESTRATION's run.

    Args:
        reason: Replaces the one of the stop, if given.
        run: How the run went, if the router knows. Routers count alike for all scopes; only an
            ORCHESTRATION's is kept.

    Raises:
        InvalidArgument: A run of another instance.
    """
    instance = get(store, name)
    _check_run(instance, run)
    stopped = instance.moved(Verb.FINISH, store.now, reason or instance.state_reason)
    store.save_instance(stopped)
    if stopped.spec.scope is Scope.ORCHESTRATION:
        parent = get(store, stopped.spec.parent)
        store.save_instance(parent.archived(_completed(run, stopped), store.now))
    return stopped


def _check_run(instance: Instance, run: RunSummary | None) -> None:
    if run is not None and run.instance not in ("", instance.name):
        violation = FieldViolation("run.instance", f"must be {instance.name}, or empty")
        raise InvalidArgument(violations=[violation])


def _completed(run: RunSummary | None, stopped: Instance) -> RunSummary:
    run = run or RunSummary(instance="")
    return replace(run, instance=stopped.name, end_time=run.end_time or stopped.update_time)


def report_failed(store: InstanceStore, name: str, reason: str) -> Instance:
    """Note that an instance is broken, and why."""
    return _move(store, name, Verb.FAIL, reason)


def _move(store: InstanceStore, name: str, verb: Verb, reason: str = "") -> Instance:
    moved = get(store, name).moved(verb, store.now, reason)
    store.save_instance(moved)
    return moved
