"""Opening pages of the explorer."""

from sharevl_lite.store import read


def opened(page, address, query="", ready="main section"):
    page.goto(address + query)
    page.wait_for_selector(f"#sharevl {ready}")


def first_problem(run, step=1):
    return read(run, steps=[step])["problem_id"][0].as_py()
