"""Which layers, heads and relations of student and teacher are compared, and whether they fit each other."""

from flaxbert.config import DistillationConfig
from flaxbert.errors import ConfigError
from flaxbert.model import Model
from flaxbert.train.recipes.student import StudentOrigin, spread_layers


def mapped_layers(config: DistillationConfig, student: Model, teacher: Model, origin: StudentOrigin) -> tuple[int, ...]:
    """Returns the teacher's layer, from 0, that each of the student's is compared with.

    Args:
      config: May name them.
      student: The student.
      teacher: The teacher.
      origin: What the student was made of.

    Raises:
      ConfigError: There are no such layers.
    """
    given, num_own = config.layer_map, student.config.num_hidden_layers
    num_theirs = teacher.config.num_hidden_layers
    if not given:
        return origin.layers or spread_layers(num_own, num_theirs)
    if len(given) != num_own:
        raise ConfigError(
            f"distillation.layer_map names {len(given)} layers, but the student has {num_own}; name one of the teacher's for each."
        )
    wrong = [layer for layer in given if not 0 <= layer < num_theirs]
    if wrong:
        raise ConfigError(
            f"distillation.layer_map names layer {wrong[0]}, but the teacher has the layers 0 to {num_theirs - 1}."
        )
    return given


def check_inside(chosen: DistillationConfig, student: Model, teacher: Model, origin: StudentOrigin) -> None:
    """Checks heads, widths and layers of what is compared inside of the networks.

    Args:
      chosen: What is compared.
      student: The student.
      teacher: The first teacher.
      origin: What the student was made of.

    Raises:
      ConfigError: They do not fit each other.
    """
    mapped_layers(chosen, student, teacher, origin)
    own, theirs = student.config, teacher.config
    heads = (own.num_attention_heads, theirs.num_attention_heads)
    if chosen.attention_weight and not origin.heads and heads[0] != heads[1]:
        raise ConfigError(
            f"distillation.attention_weight compares head by head, but the student has {heads[0]} heads and the teacher {heads[1]}; "
            "use the relations (query_relation_weight…), whose heads are free, or a sliced student."
        )
    if chosen.attention_relation_weight and heads[0] != heads[1]:
        raise ConfigError(
            f"distillation.attention_relation_weight needs as many heads in student ({heads[0]}) and teacher ({heads[1]}); "
            "use query_relation_weight and its like."
        )
    relations = [name for name in ("query_relation", "key_relation", "value_relation") if chosen.weight(name)]
    if relations:
        count = chosen.relation_heads or own.num_attention_heads
        for whose, size in (("student", own.attention_size), ("teacher", theirs.attention_size)):
            if size % count:
                raise ConfigError(
                    f"{count} relation heads do not divide the {whose}'s width of {size}; set distillation.relation_heads to a number "
                    "that divides both."
                )
    for field, count, whose in (
        ("relation_teacher_layer", theirs.num_hidden_layers, "teacher"),
        ("relation_student_layer", own.num_hidden_layers, "student"),
    ):
        if getattr(chosen, field) >= count:
            raise ConfigError(
                f"distillation.{field} is {getattr(chosen, field)}, but the {whose} has the layers 0 to {count - 1}."
            )
